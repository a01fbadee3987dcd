"""The report of a run: one HTML page that needs nothing else, and is of bounded size whatever the run read.

page.py     the page from what is known          facts.py    what is asked of the outputs, all of it SQL
verdict.py  how it ended, in a sentence          sections.py, times.py, letters.py   a part of the page each
flow.py, charts.py   pictures                    markup.py   escaped text, numbers, times
"""

from beam_pipelines.serving.report.agreement import Agreement
from beam_pipelines.serving.report.page import Compare, report_page

__all__ = ["Agreement", "Compare", "report_page"]
