"""How long a fresh process takes to be of use: importing the runtime, showing help.

python benchmarks/startup.py [--runs 15]
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import vadexport.runtime": ["-c", "import vadexport.runtime"],
    "vadexport --help": ["-m", "vadexport", "--help"],
}


def main() -> None:
    """Print the median and the slowest of several runs, after one that is not counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    for name, words in COMMANDS.items():
        seconds = [timed(words) for _ in range(runs + 1)][1:]
        print(f"{name:<26} median {statistics.median(seconds):.3f} s, slowest {max(seconds):.3f} s")


def timed(words: list[str]) -> float:
    """Seconds that the interpreter takes with these arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
