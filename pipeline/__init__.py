"""Stages that turn raw text into a trained model, and the small engine that runs them."""
