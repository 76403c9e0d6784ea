"""Serves an engine over gRPC.

Owns the wire: conversion, status codes, health, drain. Must not decide anything: it converts and nothing else.
"""
