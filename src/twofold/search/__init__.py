"""Searching a loss and an architecture: the implementation of `twofold search`.

Public: `run.search` and `seeds.searches` (whole searches by a recipe), `recipe.SearchRecipe` and `recipe.JudgeRecipe`
(what they need to know), `scheme.Search` (one stage, for any network and any upper loss), `judge.train_judge` and
`judge.load_judge`, `halves.split_source`. What is searched stands in `twofold.space`.
"""
