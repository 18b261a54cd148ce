"""What two stages share: the vocabulary and the plumbing. It knows neither DVC nor Prefect."""
