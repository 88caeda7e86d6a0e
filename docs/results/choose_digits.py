"""Write the 1,500 training digits as an array, of which the last 150 are held out: what settings are chosen on.

Usage: python choose_digits.py OUT.npz
"""

import sys

import numpy as np

from halikit import data

digits = data.load("digits")
np.savez(sys.argv[1], images=digits.train.images.numpy(), labels=digits.train.labels.numpy(), classes=digits.classes)
