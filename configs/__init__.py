"""Holds the recipes: --config=reach takes reach.py.

A recipe of your own can begin with one of these: a wheel has them as pi0_jax.configs.
"""
