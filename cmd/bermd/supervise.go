package main

import "errors"

const childEnv = "BERM_ALL_IN_ONE_CHILD"

func (r *run) serveAllInOne() error { return errors.New("pending") }
func (r *run) supervise(bool) error { return errors.New("pending") }
