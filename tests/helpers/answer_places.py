"""Responses whose answer has to be found: gold answer, response, whether the response is right."""

PLACES: dict[str, list[tuple[str, str, bool]]] = {
    "several boxes": [
        ("50", r"The width is \boxed{5}, and so the area is \boxed{50}.", True),
        ("5", r"The width is \boxed{5}, and so the area is \boxed{50}.", False),
        ("10", r"The first answer \boxed{5} was wrong, and the right one is \boxed{10}.", True),
        ("7", r"$\boxed{3}+\boxed{4}=\boxed{7}$", True),
        ("7", r"$\boxed{14} \Rightarrow \boxed{7}$", True),
        ("14", r"$\boxed{14} \Rightarrow \boxed{7}$", False),
        ("7", r"$\boxed{14} \to \boxed{7}$", True),
        ("2, 3", r"$\boxed{2}$ and $\boxed{3}$", True),
        ("2, 3", r"$x=\boxed{2}$, or $x=\boxed{3}$", True),
        ("2, 3", r"$\boxed{2}\text{ and }\boxed{3}$", True),
        ("2, 3", r"$\boxed{2},\quad\boxed{3}$", True),
        ("2, 3", r"\(\boxed{2}\); \(\boxed{3}\)", True),
        ("1, 2, 3", r"**$\boxed{1}$**, $\boxed{2}$, and $\boxed{3}$.", True),
        ("3", r"$\boxed{2}$ and $\boxed{3}$", False),
        ("3", r"$x_1 = \boxed{2}$ and $x_2 = \boxed{3}$", False),
    ],
}
