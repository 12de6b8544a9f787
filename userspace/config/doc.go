// Package config decodes the one file of an edge, /etc/berm/berm.yaml, into the Config of every
// package, and reports everything that is wrong with it at once: by line, column and key.
package config
