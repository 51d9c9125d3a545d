"""A reward of your own: solve the countdown problem, and be brief.

    python examples/custom_reward.py
    cd examples && rloop-fit --reward custom_reward.right_and_brief --reward.success_threshold 0.5

Both train the policy in the package on its built-in problems. The first takes half a minute, the second 10 to 17.
"""

from collections.abc import Sequence

from rloop_lightning import CountdownReward, Problem, train

FREE_CHARACTERS = 20
PENALTY = 0.01  # for each further character


def right_and_brief(problems: Sequence[Problem], completions: Sequence[str]) -> list[float]:
    """1 for a solution, 0 for anything else, less a penalty of at most 0.4 for a long completion."""
    solved = CountdownReward().rewards(problems, completions)
    excess = [max(0, len(completion) - FREE_CHARACTERS) for completion in completions]
    return [reward - min(0.4, PENALTY * characters) for reward, characters in zip(solved, excess, strict=True)]


def main() -> None:
    result = train(
        # A name, which config.yaml can hold. A resume finds it in this folder:
        # cd examples && rloop-fit --resume ../runs/NAME
        # Solutions earn 0.6 or more.
        reward={"name": "custom_reward.right_and_brief", "success_threshold": 0.5},
        loop={"rounds": 1, "explore_steps": 10, "problems_per_step": 16, "rollouts_per_problem": 8},
        filter={"max_success_rate": 0.5},
        eval={"samples": 8, "k": [1, 8], "max_problems": 32, "every_n_steps": 0},
    )
    print(result.table)


if __name__ == "__main__":
    main()
