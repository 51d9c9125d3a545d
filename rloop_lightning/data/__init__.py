"""Problem sets, and the streams that phases train on.

`--data` takes a name of `PROBLEM_SOURCES`, a class path, a file or folder (which means `files`), or the name of a
Hugging Face data set (which means `hub`).
"""

PROBLEM_SOURCES = {
    "countdown": "rloop_lightning.data.countdown.Countdown",
    "files": "rloop_lightning.data.files.ProblemFiles",
    "hub": "rloop_lightning.data.hub.HubProblems",
}
