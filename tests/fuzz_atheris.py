"""Coverage-guided fuzzing of one reader, with atheris: python tests/fuzz_atheris.py READER [-runs=N …].

The readers are those of ``readers.py``; further arguments are libFuzzer's. Exit code 0 where nothing was found; else
the input that did it lies in the current directory.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["halikit", "tomllib"]):
    from readers import READERS, survives

    import halikit.config
    import halikit.data
    import halikit.model
    import halikit.runs.report
    import halikit.training.trainer  # noqa: F401


def main() -> None:
    name, *options = sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "files").mkdir()
        (Path(place) / "corpus").mkdir()
        reader = READERS[name](Path(place) / "files")
        words: set[bytes] = set()
        for number, (content, _) in enumerate(reader.good):
            (Path(place) / "corpus" / str(number)).write_bytes(content)
            words |= set(re.findall(rb"[\w.]{3,32}", content)) | {b"0"}
        (Path(place) / "words").write_bytes(b"".join(b'"%s"\n' % word for word in sorted(words)))
        limits = [
            f"-max_len={2 * max(len(content) for content, _ in reader.good) + 64}",
            "-timeout=20",
            "-rss_limit_mb=2000",
        ]
        atheris.Setup(
            [sys.argv[0], f"-dict={place}/words", *limits, *options, f"{place}/corpus"],
            lambda content: survives(lambda: reader.read(content)),
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
