"""Serves an engine over gRPC: conversion of messages, status codes, health, the life of the server.

Owns the listening port and the wire. Must not decide anything that a user in process would miss.
"""
