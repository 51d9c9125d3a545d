"""Problem sets: built-in problems, files and Hugging Face data sets.

`--data` takes a name from `PROBLEM_SOURCES`, a class path, a file or folder (source `files`), or the name of a Hugging
Face data set (source `hub`).
"""

PROBLEM_SOURCES = {
    "countdown": "rloop_lightning.data.countdown.Countdown",
    "files": "rloop_lightning.data.files.ProblemFiles",
    "hub": "rloop_lightning.data.hub.HubProblems",
}
