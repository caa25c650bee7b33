"""Recipes, each by its name: --config=reach; or copy one, or begin yours with its get_config. A wheel has them as pi0_jax.configs."""
