package main

type kernelCmd struct{}
type confCmd struct{}
type benchCmd struct{}

func (kernelCmd) Run() error { return nil }
func (confCmd) Run() error   { return nil }
func (benchCmd) Run() error  { return nil }
