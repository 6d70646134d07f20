"""Conversion of policies from and to other projects.

`lerobot/policies/<type>.py` converts one policy type of LeRobot; new files there are found by name. Each has

    to_policysmith(weights, config) -> (sections, weights)      from LeRobot's config.json to sections of a recipe
    to_lerobot(weights, content) -> (config, weights)           from the content of a config, the other way
    is_of(recipe) -> bool                                       whether a resolved recipe belongs to this family

and, if the policy does more to its inputs than normalize them,

    STEPS                                                       names of the supported steps of the preprocessor
    transforms(config, normalize) -> transforms                 transforms of the recipe, given the normalizing ones
    processor(content) -> (options, steps, content)             config options, preprocessor steps, remaining content

Each accounts for every weight by name (`lerobot/weight_names.py`).
"""
