"""Refuses a commit whose subject is too long or ends in a full stop.

python scripts/check_commit_subject.py .git/COMMIT_EDITMSG
"""

import pathlib
import sys

LONGEST = 72


def main() -> None:
    subject = pathlib.Path(sys.argv[1]).read_text().partition("\n")[0]
    if len(subject) > LONGEST or subject.endswith("."):
        raise SystemExit(
            f"The subject must have at most {LONGEST} characters and no full stop at its end. "
            f"Received: {subject!r}, {len(subject)} characters"
        )


if __name__ == "__main__":
    main()
