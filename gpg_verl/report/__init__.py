"""What training runs did: their logs (runs) as tables, curves and a page. Knows nothing of training itself."""


class ReportError(Exception):
    """Something the reader of the report can put right; the message says what and how."""
