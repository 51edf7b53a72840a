"""Data sets as veRL's parquet files, checked before a run spends hours on them. Knows nothing of training.

`dataset`    what a data set, its splits and a question are
`text_sets`, `vision_sets`   the tables of data sets, and how each one's rows are read
`source`     rows from local files and from the Hugging Face hub
`images`     an image as the model will see it: read in full, RGB, scaled down
`templates`  how a question becomes a prompt
`checks`     row counts, leaked evaluation questions, prompt lengths
`prepare`    one split, in one pass: read, checked, written
`write`      parquet, whole or not at all, the same bytes for the same rows
"""


class DataError(Exception):
    """Something the user can put right; the message names where, what was seen and how to fix it."""
