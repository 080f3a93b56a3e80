"""Reading of metrics.json."""

import json

from d2ext.run_dir.metrics import read_metrics


def test_valid_rows_and_the_number_of_other_lines(tmp_path):
    path = tmp_path / "metrics.json"
    rows = [{"iteration": i, "total_loss": 1.0} for i in range(3)]
    invalid = ['{"iteration": 3, "tot', "", "[]", "{}", '{"iteration": true}', '{"iteration": -1}']
    invalid += ['{"iteration": 9007199254740992}', "[" * 100_000]
    path.write_text("\n".join([*map(json.dumps, rows), *invalid]) + "\n")
    assert read_metrics(path) == (rows, 7)
    path.write_bytes(b'\xff\n{"iteration": 5}\n')
    assert read_metrics(path) == ([{"iteration": 5}], 1)
    assert read_metrics(path, last=1) == ([{"iteration": 5}], 0)
    assert read_metrics(tmp_path / "absent.json") == ([], 0)
    (tmp_path / "endless.json").symlink_to("/dev/full")
    assert read_metrics(tmp_path / "endless.json") == ([], 0)
