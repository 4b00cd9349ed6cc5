"""Whether a GPU says what the CPU says: `uv run python tests/gpu.py [model folder]`, with numpy, ONNX Runtime and, on a GPU, torch (whose CUDA libraries are used). Exit code 1 where it does not."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from {{cookiecutter.__package}}.release import NEAR_ZERO, TOLERANCE, Predictor, load
from {{cookiecutter.__package}}.schema import Schema

ROWS = 10_000


def matrix(predictor: Predictor, golden: list[dict]) -> np.ndarray:
    """Golden rows, and many more whose every column is one of theirs: float64 [rows, slots]."""
    columns, _ = predictor.settled({name: [row.get(name) for row in golden] for name in predictor.schema.names})
    known, rng = predictor.encode(columns), np.random.default_rng(0)
    drawn = rng.integers(len(known), size=(ROWS, known.shape[1]))
    return np.concatenate([known, known[drawn, np.arange(known.shape[1])]])


def main(folder: str = "build/model") -> int:
    """Compare the two. The exit code."""
    import onnxruntime

    manifest, files = load(folder)
    schema = Schema.loads(files["schema.json"])
    predictor = Predictor(files["model.onnx"], schema, manifest["threshold"])  # as the service does
    X = matrix(predictor, json.loads(files["golden.json"])["rows"])
    plain = onnxruntime.InferenceSession(files["model.onnx"], providers=["CPUExecutionProvider"]).run(None, {"rows": X})[0]
    gap = abs(predictor.scores(X) - (plain if predictor.labels else plain.ravel()))
    if not predictor.labels: gap /= np.maximum(abs(plain.ravel()), NEAR_ZERO * (schema.target.spread or 1.0))
    where = f"ran on {predictor.provider}" if predictor.provider != "CPUExecutionProvider" else "no GPU that ONNX Runtime can use: ran on the CPU (CPUExecutionProvider)"
    print(f"{where}: {len(X)} rows, the largest difference from the CPU's answers {gap.max():.1e}, allowed {TOLERANCE:.0e}")
    return int(gap.max() > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
