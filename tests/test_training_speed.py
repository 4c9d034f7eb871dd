"""The training benchmark runs on a small table; no time is asserted."""

import csv
import json

import pytest

from tests.benchmarks import training_speed
from tests.helpers.training_job import make_pairs


@pytest.mark.slow
def test_a_small_run_measures_everything(tmp_path, capsys):
    table = tmp_path / "sites.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "interpro_id", "seq_full", "label"])
        for number, pair in enumerate(make_pairs(16)):
            if pair.label:
                for side in (pair.query, pair.candidate):
                    labels = json.dumps(list(side.site_labels))
                    writer.writerow([side.uid, f"F{number}", side.sequence, labels])
    words = ["--sites", str(table), "--pairs", "8", "--plain-pairs", "2", "--out", str(tmp_path)]
    result = training_speed.main(words)
    assert all(value > 0 for value in result["pairs_per_second"].values())
    assert result["peak_gigabytes"] > 0 and result["proteins"] == 16
    assert "| plain loop, batch 1 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "training_speed.json").read_text())["pairs"] == 8
