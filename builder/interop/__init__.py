"""Policies of other projects as ours, and ours as theirs.

`lerobot_<type>.py` converts a policy type of LeRobot; a new file there is found by its name. It has

    to_policysmith(weights, config) -> (sections, weights)      LeRobot's config.json as sections of a recipe
    to_lerobot(weights, content) -> (config, weights)           content of a policy's config; the other way round
    is_of(recipe) -> bool                                       whether a resolved recipe is of this family

and, where a policy does more to its inputs than normalise them,

    STEPS                                                       names of the steps that its preprocessor may have
    transforms(config, normalize) -> transforms                 those of the recipe, around those that normalise
    processor(content) -> (options, steps, content)             of the config and the preprocessor; what is left to do

Each accounts for every weight, by name (`pairs.py`).
"""
