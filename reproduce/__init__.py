"""What makes the tables and figures of the papers and the bundled models; not in the wheel."""
