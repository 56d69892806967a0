"""Charts of the book: what their data may hold."""

import json
import re

import pandas as pd

from helpers.engine.charts import Chart, as_html


def test_text_of_the_data_cannot_leave_the_script_of_a_chart():
    row = "</script><!--<script>"
    chart = Chart(figure="f", title="t", slider="at", label="l", row="row", value="value", axis="a")
    html = as_html(chart, pd.DataFrame({"at": [1.0], "row": [row], "value": 1.0, "low": 1.0, "high": 1.0, "slot": 0}))
    script = re.search(r'<script type="application/json">(.*)</script></div>', html, re.DOTALL)[1]
    assert "<" not in script
    assert row in json.dumps(json.loads(script))
