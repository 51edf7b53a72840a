"""All data sets, by name."""

from gpg_verl.data.text_sets import TEXT_SETS
from gpg_verl.data.vision_sets import VISION_SETS

SETS = TEXT_SETS | VISION_SETS
