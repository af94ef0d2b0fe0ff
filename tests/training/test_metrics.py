"""metrics.jsonl after a kill reads like that of a run that never stopped."""

import json

from sashimi_diffusion.training.run_folder import MetricsFile


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for step in range(1, 6):
        metrics.write({"step": step, "loss": step / 10})
    metrics.write({"step": 5, "validation_loss": 1.0})
    assert len(read(path)) == 6  # each line is there as soon as it is written
    metrics.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    metrics = MetricsFile(path, 3)
    metrics.write({"step": 4, "loss": 0.5})
    metrics.sync()
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4]
    metrics.close()


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0).close()
    assert path.read_text() == ""
