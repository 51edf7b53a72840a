"""What training runs did: their logs as tables, plots and a page. Knows nothing of training itself.

`metrics`   one run read back from veRL's file logger or tensorboard
`dumps`     the answers of a validation, for standard errors and truncation
`paper`     the paper's tables
`compare`   our runs as rows of those tables, several seeds as mean and spread
`seeds`     several methods with several seeds each: means with intervals, paired tests
`statistics`   Student's t, and Holm's correction
`table`, `plot`, `page`   text, PNG and HTML
`watch`     the progress of a running command
"""


class ReportError(Exception):
    """Something the reader of the report can put right; the message says what and how."""
