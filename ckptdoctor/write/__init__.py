"""Plan -> file: a verified copy of the input that differs in what the plan says, and in nothing else.

`target` decides where it goes, `draft` is a file that appears whole or not at all, `copying` fills
it, `windows` turns edits into bytes, `checksums` keeps the archive's checksums true, `verify`
reads it all back, and `writer` is the order of these steps.
"""
