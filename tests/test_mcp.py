"""Tools of an agent: what they say, and that a real client can call them."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from plasma_hf.cli import mcp as tools

CHYMOTRYPSINOGEN, STRUCTURES = "demo/structures/2cga_B.pdb.gz", "demo/structures"


def test_residues_are_named() -> None:
    found = tools.align(CHYMOTRYPSINOGEN, "demo/structures/1ppe_E.pdb.gz", database_size=8)
    assert found["evalue"] == 8 * found["p_value"] < 1e-20
    sides = [(query, candidate) for query, candidate, _ in found["segments"][0]["pairs"]]
    assert {("B:57", "E:57"), ("B:102", "E:102"), ("B:195", "E:195")} <= set(sides)
    assert json.loads(json.dumps(found)) == found
    assert tools.align(CHYMOTRYPSINOGEN, "demo/structures/2sni_E.pdb.gz")["segments"] == []


def test_a_database_is_searched() -> None:
    found = tools.search(CHYMOTRYPSINOGEN, STRUCTURES, top_k=2)
    assert [hit["candidate"][:4] for hit in found["hits"]] == ["2cga", "1acb"]
    assert found["searched"] == 8 and found["left_out"] == []
    sites = tools.transfer_site(CHYMOTRYPSINOGEN, "H57,D102,S195", STRUCTURES)
    assert {hit["candidate"][:4] for hit in sites["hits"]} == {"2cga", "1acb", "1ppe"}
    assert all(hit["kept"] == 3 for hit in sites["hits"])
    assert ["B:H57", "E:H57"] in [hit["pairs"][0][:2] for hit in sites["hits"]]


@pytest.mark.slow
@pytest.mark.enable_socket
def test_a_client_calls_them() -> None:
    client: Any = pytest.importorskip("mcp")
    stdio: Any = pytest.importorskip("mcp.client.stdio")
    code = "from plasma_hf.cli import app; app()"
    server = client.StdioServerParameters(
        command=sys.executable, args=["-c", code, "mcp"], env={"PYTHONPATH": str(Path.cwd())}
    )
    calls = (
        ("align", {"query": "MKTAYIAKQRQISFVKSHFSRQ", "candidate": "AYIAKQRQLSFVKSHFS"}),
        ("search", {"query": CHYMOTRYPSINOGEN, "database": STRUCTURES}),
        (
            "transfer_site",
            {"query": CHYMOTRYPSINOGEN, "residues": "H57,D102,S195", "database": STRUCTURES},
        ),
        ("transfer_site", {"query": CHYMOTRYPSINOGEN, "residues": "B57", "database": STRUCTURES}),
        ("search", {"query": "MKV", "database": "no/where"}),
    )

    async def talk() -> tuple[Any, list[Any]]:
        async with stdio.stdio_client(server) as streams, client.ClientSession(*streams) as session:
            await session.initialize()
            listed = (await session.list_tools()).tools
            return listed, [await session.call_tool(*call) for call in calls]

    listed, answers = asyncio.run(talk())
    assert [tool.name for tool in listed] == ["align", "search", "transfer_site"]
    assert all("Use it" in tool.description for tool in listed)
    aligned, searched, site, bad, missing = answers
    assert aligned.structured_content["segments"][0]["pairs"][0][:2] == ["4", "1"]
    assert len(searched.structured_content["hits"]) == 3
    assert json.loads(site.content[0].text)["hits"][0]["kept"] == 3
    assert bad.is_error and "is H, not B; a chain is written with a colon" in bad.content[0].text
    assert missing.is_error and "there is no file or folder 'no/where'" in missing.content[0].text
