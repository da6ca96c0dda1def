"""The benchmark of fastsoftmax: `python -m bench` races it, `python -m bench.accuracy` measures its errors.

cases.py        what is computed: operations, shapes, dtypes, and the arrays of one case
contenders.py   the libraries that compute it: fastsoftmax, its reference, SciPy
peers.py        other libraries, raced where they are installed
limits.py, .c   limits that no contender can beat: moving the bytes, and exponentiating the numbers
workers.py      a process for each contender, where it computes and is timed
race.py         the measurement: agreement first, then interleaved rounds
measure.py      all cases with one number of threads
busy.py         `--busy`: one thread and several beside other work; busy_report.py writes the results
scale.py        `--scale`: logits on disk, through dask
report.py       the results as tables, Markdown and JSON
compare.py      `--compare`: what got faster or slower between two runs
marks.py        the marks that fastsoftmax should reach, and the cases that miss them
chart.py        pictures of the results; accuracy_chart.py draws the errors
machine.py      the machine, compiler and versions that were measured
boosting.py     `python -m bench.boosting`: objectives in XGBoost and LightGBM
"""
