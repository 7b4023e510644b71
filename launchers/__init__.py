"""Running the pipeline on machines that are not this one."""
