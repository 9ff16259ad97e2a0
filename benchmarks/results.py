"""Tables and pictures of docs/results.md, and the verdicts on the paper's claims, from the rows in docs/data alone.

python benchmarks/results.py                         write them (make results)
python benchmarks/results.py --land results/headline-width    take a study's rows into docs/data first
python benchmarks/results.py --claim 8               all figures of a claim, and what decides them
python benchmarks/results.py --data results --claim 1         of a folder of studies of one's own
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sparse_model.errors import InputError
from sweeps.claims import CLAIMS, Landed, land_study, written_page
from sweeps.claims.pictures import draw_pictures

ROOT = Path(__file__).parents[1]
DATA, PAGE = ROOT / "docs" / "data", ROOT / "docs" / "results.md"


def main() -> None:
    """Land, show or write."""
    asked = arguments()
    for uri in asked.land:
        for path in land_study(uri, str(asked.data)):
            print(path)
    landed = Landed(str(asked.data))
    if asked.claim is not None:
        show(landed, asked.claim)
        return
    PAGE.write_text(written_page(PAGE.read_text(encoding="utf-8"), landed), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}, from {', '.join(landed.studies)}")
    for path in draw_pictures(landed, PAGE.parent):
        print(f"drawn: {path.relative_to(ROOT)}")


def show(landed: Landed, number: int) -> None:
    """One claim with all its parts."""
    for finding in (claim.finding(landed) for claim in CLAIMS if claim.number == number):
        print(
            f"{number}. {finding.claim.name}: {finding.verdict}, by rows of {', '.join(finding.studies) or 'nothing'}"
        )
        print(f"   the paper: {finding.claim.paper}")
        print(f"   holds where: {finding.claim.decided_by}")
        for part in finding.parts:
            print(f"   {part.what}: {part.found}" + (f" · {part.rule}: {part.verdict}" if part.rule else ""))


def arguments() -> argparse.Namespace:
    """What is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--land", action="append", default=[], metavar="URI", help="a study's folder; repeatable")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of studies (default: docs/data)")
    parser.add_argument("--claim", type=int, choices=sorted({claim.number for claim in CLAIMS}), help="show this one")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"results: {error}", file=sys.stderr)
        sys.exit(2)
