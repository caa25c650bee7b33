"""The recipes. --config=reach takes reach.py; a recipe of your own can begin with one: a wheel has them as pi0_jax.configs."""
