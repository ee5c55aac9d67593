"""Controllers: learned policies and the baselines that they are judged against."""
