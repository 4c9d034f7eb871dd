"""The portable room: everything that travels to the Hub as remote code, flat, on its own."""
