"""pi0_jax: the π0 vision-language-action model in JAX, from RLDS files to a policy."""
