"""What training runs did: their logs as tables, plots and a page. Knows nothing of training itself.

`runs`         one run read back: a table of its steps, a table of its validations
`tables`       runs as tables: a run's steps, methods side by side, several seeds with intervals and paired tests
`paper`        the paper's tables; `beside` puts our runs as rows into them
`draw`         curves and the page
`watch`        the progress of a running command
`masks`        LISA's mask metrics, of a run's answers
"""


class ReportError(Exception):
    """Something the reader of the report can put right; the message says what and how."""
