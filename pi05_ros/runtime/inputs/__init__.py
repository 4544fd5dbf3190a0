"""From messages to one fresh observation: conversion, freshness and merging, without ROS."""
