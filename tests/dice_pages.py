"""Where the pages of DICE lie, and what the released functions gave on inputs that the file states.

`dice_golden.json` holds the results of THU-KEG/DICE, commit 8efb0d55.
"""

import json

from lift import ROOT

FOLDER = ROOT / "notebooks" / "dice"
PAGE, STUDY = (str(FOLDER / f"{name}.ipynb") for name in ("dice", "published_numbers"))
GOLDEN = json.loads((ROOT / "tests" / "chapters" / "dice_golden.json").read_text())
