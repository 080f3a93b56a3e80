"""Choose values of a recipe that fit the training data: a fingerprint of the data, then rules."""
