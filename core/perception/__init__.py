"""Perception: finding objects, cutting them out, naming surfaces and judging depth, for data building and for clicks.

One file per noun: ``box_detection`` (words to boxes), ``segmentation`` (boxes and clicks to masks; ``sam`` and ``grabcut`` behind it),
``semantics`` (class maps and the surfaces that carry objects), ``depth`` (relative depth and flatness). Networks run through transformers
and are loaded when a class is made; importing any of these modules needs neither torch nor transformers.
"""
