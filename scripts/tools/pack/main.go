package main

import (
	_ "github.com/goreleaser/nfpm/v2/deb"
)

func main() {}
