"""The demo page: its functions, its folder as a Space, and the page itself in a browser."""

import base64
import doctest
import json
import os
import re
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from huggingface_hub import SpaceCard

from plasma_hf.hub import upload as metric_spaces
from plasma_hf.hub.card import template_folder
from plasma_hf.io import formats
from plasma_hf.models.alignment_result import FORMATS
from plasma_hf.models.protein import Protein, read_protein
from reproduce import demo_space as space
from tests.helpers.structure_files import make_structure, write_pdb

pytest.importorskip("gradio", reason="gradio is not installed: pip install plasma-hf[space]")
pytest.importorskip("plotly", reason="plotly is not installed: pip install plasma-hf[space]")

ROOT = Path(__file__).parents[1]
STRUCTURES = ROOT / "demo" / "structures"
MODULES = ("app", "html_parts", "plan_figure", "read_inputs", "structure_view", "tools")
PAIR = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "AYIAKQRQLSFVKSHFSRQ")
BPTI = "RPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGA"


@pytest.fixture(scope="module")
def app():
    """The page's module, imported as `python app.py` imports what is beside it."""
    # Metrics have an app.py, too, which the search for doctests imports under the same name.
    others = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}
    sys.path.insert(0, str(template_folder() / "space"))
    import app

    yield app
    sys.path.pop(0)
    for name in MODULES:
        del sys.modules[name]
    sys.modules.update(others)


def as_text(value):
    """Give the arguments of a protein that is typed in."""
    return value, None, ""


def as_file(path, part=""):
    """Give the arguments of a protein that is uploaded."""
    return "", str(path), part


def downloaded(links):
    """Read the files that links hold, by name."""
    pattern = r'download="(.+?)" href="data:[^,]*;base64,(.+?)"'
    return {name: base64.b64decode(data).decode() for name, data in re.findall(pattern, links)}


def cells(table):
    return re.findall(r"<td>(.*?)</td>", table)


def test_two_sequences(app, align):
    summary, view, figure, pairs, rows, files = app.align(*as_text(PAIR[0]), *as_text(PAIR[1]), 100)
    result = align(PAIR, return_plan=True, database_size=100)
    (segment,) = result["segments"]
    assert (
        f"<b>E {result['evalue']:.2g}</b>" in summary and f"score {result['score']:.3f}" in summary
    )
    assert view == ""  # sequences lie nowhere
    assert cells(summary)[:4] == ["1", "A4 – Q22", "A1 – Q19", str(len(segment["pairs"]))]
    assert len(cells(pairs)) == 4 * len(segment["pairs"])
    assert cells(pairs)[1:3] == ["A4", "A1"]
    assert "query      4 AYIAKQRQISFVKSHFSRQ 22" in rows
    assert downloaded(files) == {
        f"alignment{form.endings[0]}": result.to_string(name) for name, form in FORMATS.items()
    }
    (heat_map,) = figure.data
    np.testing.assert_allclose(heat_map.z, result["plan"], atol=1e-6)
    assert (heat_map.y[3], heat_map.x[0]) == ("A4", "A1")
    (box,) = figure.layout.shapes
    assert (box.y0, box.x0, box.label.text) == (2.5, -0.5, "segment 1")


def test_structures_keep_the_numbers_of_their_files(app):
    files = (STRUCTURES / "2cga_B.pdb.gz", STRUCTURES / "1ppe_E.pdb.gz")
    summary, view, figure, *_ = app.align(*map(str, as_file(files[0])), *as_file(files[1]), 1)
    assert cells(summary)[1:3] == ["I16 – N245", "I16 – N245"]
    assert "RMSD 1.03 Å" in view and "1ppe_E.pdb.gz:E</b>" in view
    assert figure.layout.xaxis.title.text == "candidate 1ppe_E.pdb.gz:E"


def test_a_chain_or_record_is_named(app, tmp_path):
    fasta = "".join(f">{p.id}\n{p.sequence}\n" for p in (Protein("a", PAIR[0]), Protein("b", "MK")))
    assert app.read_input(fasta, None, " a ", "query").sequence == PAIR[0]
    with pytest.raises(ValueError, match=r"^text.fasta holds 2 records: a, b; name one"):
        app.read_input(fasta, None, "", "query")
    chain = make_structure("two", 20, 1)
    write_pdb(chain, tmp_path / "two.pdb")
    lines = (tmp_path / "two.pdb").read_text().replace("END\n", "")
    (tmp_path / "two.pdb").write_text(lines + lines.replace(" A ", " B "))
    with pytest.raises(ValueError, match=r"^two.pdb holds 2 chains"):
        app.read_input(*as_file(tmp_path / "two.pdb"), "query")
    assert len(app.read_input(*as_file(tmp_path / "two.pdb", "B"), "query")) == 20
    both = app.read_input(*as_file(tmp_path / "two.pdb", "*"), "query")
    assert app.plan_figure(np.eye(40), [], [both, both]).data[0].x[20][:2] == "B:"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (None, "", "query is empty"),
        (None, "MKT7", "the character '7' at position 4"),
        (None, "/etc/passwd", "the character '/' at position 1"),
        (None, "M" * 3001, "this page takes up to 3000"),
        (None, ">a\nM<b>K", "the character '<'"),
        (None, "M" * 100_001, "the text has 100,001 characters, and this page takes up to 100,000"),
        ("many.fasta", ">a\nMKV\n" * 1001, "many.fasta holds more than 50 MB or 1000 records"),
        ("notes.txt", "MKT", "nor begins with '>' as FASTA does"),
        ("bad.pdb", "nothing", "bad.pdb"),
        ("bad.fasta", "MKT", "bad.fasta is not a valid structure file"),
    ],
)
def test_bad_input_is_said_on_the_page(app, tmp_path, name, content, message):
    given = as_text(content)
    if name:
        (tmp_path / name).write_text(content)
        given = as_file(tmp_path / name)
    box, results, *rest = app.or_problem(app.align, 6)(*given, *as_text("MKV"), 1)
    assert message in unescape(box.value) and 'role="alert"' in box.value
    assert not any(text in box.value for text in ("<b>", "Traceback", str(tmp_path)))
    assert (box.visible, results.visible, len(rest)) == (True, False, 6)


def test_a_pair_without_a_segment(app):
    summary, _, figure, pairs, rows, _ = app.align(*as_text("MK"), *as_text("GW"), 1)
    assert "No segment" in summary and "no significant alignment" in rows
    assert pairs == "<p>None.</p>" and not figure.layout.shapes


def test_what_visitors_type_is_escaped(app):
    shown = app.align(*as_text(f"><script>\n{PAIR[0]}"), *as_text(PAIR[1]), 1)
    assert all("<script>" not in part for part in shown if isinstance(part, str))
    assert "&lt;script&gt;" in shown[0]


def test_labels_of_the_plan_are_plain_text(app):
    name = "<a href='x'>$\\frac12$</a>"
    chain = make_structure("s", 12, 1)
    chain = replace(chain, chain_ids=("<b>",) * 6 + ("$x$",) * 6)
    records = Protein(name, PAIR[0][:12]), read_protein(chain)
    figure = app.plan_figure(np.eye(12), [], records)
    drawn = figure.to_json()
    assert "<" not in drawn.replace("<br>", "").replace("<extra></extra>", "") and "$" not in drawn
    assert unescape(figure.layout.yaxis.title.text) == f"query {name}"
    assert unescape(figure.data[0].x[0]).startswith("<b>:")


def make_bomb(path, megabytes, piece=b"\0"):
    """Write a gzip file that unpacks to so much."""
    packer = zlib.compressobj(9, wbits=31)
    block = piece * (10**6 // len(piece))
    path.write_bytes(b"".join(map(packer.compress, [block] * megabytes)) + packer.flush())
    return path


@pytest.mark.parametrize("ending", ["pdb.gz", "fasta.gz", "fasta"])
def test_a_file_that_unpacks_to_much_is_refused(app, tmp_path, ending):
    bomb = make_bomb(tmp_path / f"bomb.{ending}", 51)
    with pytest.raises(ValueError, match=rf"^bomb.{ending} holds more than 50 MB"):
        app.read_input(*as_file(bomb), "query")
    bomb.write_bytes(bomb.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"^bomb.{ending} cannot be read: Compressed file ended"):
        app.read_input(*as_file(bomb), "query")


@pytest.mark.slow
@pytest.mark.usefixtures("socket_enabled")  # to this machine alone: the page looks nothing up
def test_a_bomb_over_http_takes_no_memory(page, tmp_path):
    client = pytest.importorskip("gradio_client")
    status = Path(f"/proc/{page[2]}/status")
    if not status.exists():
        pytest.skip("this system does not tell how much memory a process has taken")

    def peak():
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1e3

    line = b"ATOM      1  CA  ALA A   1      11.104   6.134  -6.504  1.00  0.00           C  \n"
    visitor = client.Client(page[0], verbose=False)
    given = [*as_text(PAIR[0]), *as_text(PAIR[1]), 1]
    assert "score" in str(visitor.predict(*given, api_name="/show_align"))
    before = peak()
    for piece in (b"\0", line):
        bomb = make_bomb(tmp_path / f"bomb{len(piece)}.pdb.gz", 300, piece)
        sides = ["", client.handle_file(bomb), "", *as_text(PAIR[1]), 1]
        assert "holds more than 50 MB" in str(visitor.predict(*sides, api_name="/show_align"))
    assert peak() - before < 100


def test_residues_of_a_long_protein_share_cells(app):
    protein = app.read_input("MKTA" * 300, None, "", "query")
    figure = app.plan_figure(np.eye(1200), [], [protein, protein])
    (heat_map,) = figure.data
    assert heat_map.z.shape == (400, 400) and heat_map.x[0] == "M1 to T3"
    assert (np.diag(heat_map.z) == 1).all()


@pytest.mark.parametrize("given", [as_text(BPTI), as_file(STRUCTURES / "9pti_A.pdb.gz")])
def test_a_structure_is_found(app, given):
    table, files = app.find_structure(*given, 3)
    assert "free BPTI" in table and len(cells(table)) == 9
    found = downloaded(files)
    hits = json.loads(found["hits.json"])["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert {hit["id"][:6] for hit in hits[:2]} == {"9pti_A", "1eaw_B"}  # BPTI, free and bound
    assert found["hits.tsv"].startswith(formats.HIT_FORMATS["tsv"].head)
    assert str(ROOT) not in "".join(found.values())


def test_search_of_proteins(app, tmp_path):
    table, files = app.search(*as_file(STRUCTURES / "2cga_B.pdb.gz"), "", None)
    assert cells(table)[1::6] == ["2cga_B.pdb.gz:B", "1acb_E.pdb.gz:E", "1ppe_E.pdb.gz:E"]
    assert len(downloaded(files)) == len(FORMATS)
    given = f">a\n{PAIR[1]}\n>b\nMK7\n>c\n{BPTI}\n"
    table, files = app.search(*as_text(PAIR[0]), given, None)
    assert cells(table)[:2] == ["1", "a"] and "against 2 proteins" in table
    assert "Left out: b: b has the character &#x27;7&#x27;" in table
    (tmp_path / "some.fasta").write_text(f">c\n{BPTI}\n")
    table, _ = app.search(*as_text(PAIR[0]), "", [str(tmp_path / "some.fasta")])
    assert "No significant hit" in table
    _, left_out = app.read_database(f">a\nMKTAYIAK\n>long\n{'MKTA' * 800}", None)
    assert left_out == ["long: it has 3200 residues, over 3000"]
    with pytest.raises(ValueError, match="more than 50 MB or 1000 records"):
        app.read_database("".join(f">{n}\nMKTAYIAK\n" for n in range(1001)), None)


def test_a_site_is_transferred(app):
    given = *as_file(STRUCTURES / "2cga_B.pdb.gz"), "H57,D102,S195", "", None
    table, files = app.transfer(*given)
    assert "3 of 8 proteins have the site" in table and "B:H57 = E:H57 (1.00)" in table
    rows = json.loads(downloaded(files)["sites.json"])
    assert {row["candidate"][:6] for row in rows} == {"1acb_E", "2cga_B", "1ppe_E"}
    assert downloaded(files)["sites.tsv"].count("\n") == 4
    table, files = app.transfer(*as_text(PAIR[0]), "K2,Y5", f">c\n{BPTI}", None)
    assert "No significant hit among 1" in table and downloaded(files)["sites.json"] == "[]"
    with pytest.raises(ValueError, match="name the residues"):
        app.transfer(*as_text(PAIR[0]), " ", "", None)


def test_tools_of_programs_and_agents(app):
    found = app.tools.align(*PAIR, 10)
    assert found["evalue"] < 1e-6 and found["segments"][0]["pairs"][0][:2] == ["4", "1"]
    searched = app.tools.search(PAIR[0], f">a\n{PAIR[1]}\n>b\nMK7\n")
    assert [hit["candidate"] for hit in searched["hits"]] == ["a"] and searched["searched"] == 1
    site = app.tools.transfer_site(PAIR[0], "Y5,I6,K8,Q9", f">a\n{PAIR[1]}")
    assert site["searched"] == 1 and site["left_out"] == []
    with pytest.raises(ValueError, match="/etc/passwd|the character '/'"):
        app.tools.align("/etc/passwd", PAIR[1])
    with pytest.raises(ValueError, match="as FASTA text"):
        app.tools.search(PAIR[0], " ")


def test_examples_in_the_code_of_the_page(app):
    done = [doctest.testmod(sys.modules[name]) for name in MODULES]
    assert sum(each.attempted for each in done) == 2 and not any(each.failed for each in done)


def test_names_are_those_of_the_structures(app):
    assert set(app.NAMES) == {file.name.partition(".")[0] for file in STRUCTURES.glob("*.gz")}


def test_the_card_is_rendered_as_it_stands():
    text = (ROOT / "hub_cards" / "space" / "README.md").read_text()
    assert space.demo_space_card() == text, "run python -m reproduce.bundled_cards"
    data = SpaceCard(text).data
    assert (data.sdk, data.app_file, data.license) == ("gradio", "app.py", "mit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of the Space, away from the project."""
    return space.demo_space(tmp_path_factory.mktemp("space") / "app")


def names_below(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_the_space_is_complete(folder):
    files = names_below(folder)
    assert {"app.py", "README.md", "requirements.txt", "style.css"} <= files
    assert {f"{module}.py" for module in MODULES} <= files
    assert "plasma_hf/checkpoints/protalign_small/model.safetensors" in files
    assert sum(name.startswith("demo/structures/") for name in files) == 9
    assert not any("__pycache__" in name for name in files)
    needed = (folder / "requirements.txt").read_text().split()
    assert any(need.startswith("torch>=") for need in needed)
    assert any(need.startswith("plotly>=") for need in needed)
    assert "mcp>=1.21,<2" in needed and "3Dmol-LICENSE.txt" in files
    assert not any(need.startswith("gradio") for need in needed)  # it is there by sdk_version


def test_the_space_is_pushed_whole(monkeypatch, folder):
    calls = {}

    class Api:
        def create_repo(self, repository, **options):
            calls["made"] = repository, options["repo_type"], options["space_sdk"]

        def upload_folder(self, folder_path, **options):
            calls["files"] = names_below(folder_path)
            return options["repo_id"], options["repo_type"]

    monkeypatch.setattr(metric_spaces, "HfApi", Api)
    assert space.push_demo_space("org/demo") == ("org/demo", "space")
    assert calls == {"made": ("org/demo", "space", "gradio"), "files": names_below(folder)}


def test_an_installed_package_has_no_examples(monkeypatch, tmp_path):
    monkeypatch.setattr(space, "EXAMPLES", tmp_path / "demo")
    with pytest.raises(FileNotFoundError, match="clone the repository"):
        space.demo_space(tmp_path / "space")


SERVE = """
import runpy, socket, sys

look_up = socket.getaddrinfo

def local_only(host, *rest, **options):
    if host not in (None, "", "127.0.0.1", "::1", "localhost"):
        print("asked for", host, flush=True)
        raise OSError(f"no network: {host}")
    return look_up(host, *rest, **options)

socket.getaddrinfo = local_only
sys.path[0] = "."
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def page(folder):
    """Address of the page, and what its server has printed."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PLASMA_HF_KERNELS": "torch"}
    environment["OMP_NUM_THREADS"] = "1"
    environment.pop("PYTHONPATH", None)
    printed = []
    with subprocess.Popen(
        [sys.executable, "-c", SERVE],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as server:
        try:
            for line in server.stdout:
                printed.append(line)
                if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            else:
                pytest.fail("the page is not served:\n" + "".join(printed))
            # What is not read would fill the pipe.
            threading.Thread(target=printed.extend, args=[server.stdout], daemon=True).start()
            yield found[0], printed, server.pid
        finally:
            server.kill()


def shown(browser, selector, count=1):
    """Wait for elements of the page that can be seen; return them."""
    from selenium.webdriver.support.ui import WebDriverWait

    def visible(_):
        found = browser.find_elements("css selector", selector)
        seen = [element for element in found if element.is_displayed()]
        return seen if len(seen) >= count else None

    return WebDriverWait(browser, 180).until(visible, f"{selector} was not shown")


def type_into(browser, field, text):
    from selenium.webdriver.support.ui import WebDriverWait

    (area,) = shown(browser, f"#{field} textarea")

    def typed(_):  # a page that is still busy may put back what was there
        if area.get_property("value") != text:
            area.clear()
            area.send_keys(text)
        return area.get_property("value") == text

    WebDriverWait(browser, 180).until(typed, f"{field} does not hold what was typed")


def click(browser, selector):
    element = shown(browser, selector)[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    element.click()


def check_width(browser, width):
    """Nothing is wider than the window; a phone would widen the window in its place."""
    sizes = "return [window.innerWidth, document.documentElement.scrollWidth]"
    inner, scrolled = browser.execute_script(sizes)
    assert inner == width and scrolled <= inner


def requests_of(browser):
    """Return the hosts that the page asked for something."""
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    asked = (
        urlsplit(message["params"]["request"]["url"])
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    )
    return {url.hostname for url in asked if url.scheme.startswith(("http", "ws"))}


@pytest.mark.slow
@pytest.mark.allow_hosts(["127.0.0.1", "::1"])
@pytest.mark.parametrize("width", [1280, 375])
def test_a_visitor(open_page, page, align, width):
    browser = open_page(page[0], width)
    type_into(browser, "query", PAIR[0])
    type_into(browser, "candidate", PAIR[1])
    check_width(browser, width)
    click(browser, "#align")
    result = align(PAIR)
    assert shown(browser, "#alignment .score b")[0].text == f"p {result['p_value']:.2g}"
    segment = [cell.text for cell in shown(browser, "#alignment td", 7)]
    assert segment[:4] == ["1", "A4 – Q22", "A1 – Q19", str(len(result["segments"][0]["pairs"]))]
    check_heat_map(browser)
    check_width(browser, width)
    check_structures(browser)
    check_width(browser, width)

    type_into(browser, "candidate", "MK7")
    click(browser, "#align")
    assert "the character '7' at position 3" in shown(browser, "#align-problem .problem")[0].text
    assert not browser.find_elements("id", "alignment")
    check_width(browser, width)

    open_tab(browser, "Search")
    type_into(browser, "protein", PAIR[0])
    type_into(browser, "search-proteins", f">found\n{PAIR[1]}")
    click(browser, "#search")
    assert shown(browser, "#hits td", 6)[1].text == "found"
    check_width(browser, width)

    open_tab(browser, "Site")
    click(browser, ".gallery-item, .gallery button")  # the triad of chymotrypsinogen
    click(browser, "#transfer")
    assert "H57" in shown(browser, "#sites td", 4)[2].text
    check_width(browser, width)

    open_tab(browser, "Structure")
    type_into(browser, "sequence", BPTI)
    click(browser, "#find")
    assert shown(browser, "#found td b")[0].text == "9pti_A"  # BPTI, free
    check_width(browser, width)
    check_upload(browser)
    assert requests_of(browser) == {"127.0.0.1"}
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    printed = "".join(page[1])
    assert "asked for" not in printed and "Traceback" not in printed


def open_tab(browser, name):
    next(tab for tab in shown(browser, "[role=tab]", 2) if tab.text == name).click()


def check_structures(browser):
    """Two structures lie upon one another in the viewer, which draws them."""
    from selenium.webdriver.support.ui import WebDriverWait

    examples = shown(browser, ".gallery-item, .gallery button", 2)
    next(one for one in examples if one.text == "Two structure files").click()
    area = shown(browser, "#query textarea")[0]
    wait = WebDriverWait(browser, 180)
    wait.until(lambda _: area.get_property("value") == "", "the example did not clear the text")
    click(browser, "#align")
    (frame,) = shown(browser, "#structures iframe")
    assert "RMSD 1.03 Å" in shown(browser, "#structures")[0].text
    browser.switch_to.frame(frame)
    atoms = "return document.body.dataset.atoms"
    wait.until(lambda _: browser.execute_script(atoms), "no structure was drawn")
    assert int(browser.execute_script(atoms)) > 2000
    assert browser.find_elements("css selector", "canvas")
    browser.switch_to.default_content()


def check_upload(browser):
    """A file takes the place of what was typed, and is searched with."""
    from selenium.webdriver.support.ui import WebDriverWait

    fields = browser.find_elements("css selector", "input[type=file]")
    fields[-1].send_keys(str(STRUCTURES / "1ppe_E.pdb.gz"))
    wait, area = WebDriverWait(browser, 180), shown(browser, "#sequence textarea")[0]
    wait.until(lambda _: area.get_property("value") == "", "the file did not clear the text")
    click(browser, "#find")
    wait.until(lambda _: shown(browser, "#found td b")[0].text == "1ppe_E", "other hits")


def check_heat_map(browser):
    """Under the pointer the heat map names both residues and their weight."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    (area,) = shown(browser, "#plan .nsewdrag")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", area)

    def hovered(_):
        ActionChains(browser).move_to_element(area).move_by_offset(3, 3).perform()
        return browser.find_elements("css selector", "#plan .hovertext")

    (label, *_) = WebDriverWait(browser, 180).until(hovered, "no label under the pointer")
    assert re.search(r"query [A-Z]\d+\s*candidate [A-Z]\d+\s*weight [01]\.\d{3}", label.text)
