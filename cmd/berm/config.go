package main

type confCmd struct{}
type benchCmd struct{}

func (confCmd) Run() error  { return nil }
func (benchCmd) Run() error { return nil }
