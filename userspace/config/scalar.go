package config

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// scalar fills a string, number, truth value, duration or anything that reads text.
func (d *decoder) scalar(n ast.Node, v reflect.Value, key string) {
	text, ok := textOf(n)
	if !ok {
		d.at(n, key, fmt.Sprintf("want %s, have %s", wanted(v.Type()), describe(n)), "")
		return
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if err := u.UnmarshalText([]byte(text)); err != nil {
			d.textProblem(n, v, key, text, err)
		}
		return
	}
	if message, hint := setScalar(n, v, text); message != "" {
		d.at(n, key, message, hint)
	}
}

// textProblem says what a value should have been; the standard library's words repeat the value.
func (d *decoder) textProblem(n ast.Node, v reflect.Value, key, text string, err error) {
	switch v.Type().String() {
	case "netip.Addr":
		d.at(n, key, fmt.Sprintf("%q is no IP address", text), addressHint(text))
	case "netip.Prefix":
		d.at(n, key, fmt.Sprintf("%q is no IP prefix", text), "write address/length, such as 192.0.2.0/24")
	case "netip.AddrPort":
		d.at(n, key, fmt.Sprintf("%q is no address with a port", text), "write 127.0.0.1:8080 or [::1]:8080")
	default:
		d.at(n, key, err.Error(), "")
	}
}

func addressHint(text string) string {
	switch {
	case strings.Contains(text, "/"):
		return "write the address without /length"
	case strings.Count(text, ":") == 1:
		return "write the address without :port"
	}
	return "write 192.0.2.1 or 2001:db8::1"
}

// setScalar returns what is wrong with text as a value of v's type.
func setScalar(n ast.Node, v reflect.Value, text string) (message, hint string) {
	if v.Type() == durationType {
		return setDuration(v, text)
	}
	switch v.Kind() {
	case reflect.String:
		if _, isBool := n.(*ast.BoolNode); isBool {
			return "want text, have the truth value " + text, `put it in quotes: "` + text + `"`
		}
		v.SetString(text)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			return fmt.Sprintf("want true or false, have %q", text), ""
		}
		v.SetBool(b.Value)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		i, err := strconv.ParseInt(strings.ReplaceAll(text, "_", ""), 0, 64)
		if err != nil || v.OverflowInt(i) {
			return fmt.Sprintf("want %s, have %q", wanted(v.Type()), text), ""
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		u, err := strconv.ParseUint(strings.ReplaceAll(text, "_", ""), 0, 64)
		if err != nil || v.OverflowUint(u) {
			return fmt.Sprintf("want %s, have %q", wanted(v.Type()), text), ""
		}
		v.SetUint(u)
	case reflect.Float32, reflect.Float64:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Sprintf("want a number, have %q", text), ""
		}
		v.SetFloat(f)
	default:
		panic("config: no way to decode into " + v.Type().String())
	}
	return "", ""
}

func setDuration(v reflect.Value, text string) (message, hint string) {
	dur, err := time.ParseDuration(text)
	if err == nil {
		v.SetInt(int64(dur))
		return "", ""
	}
	hint = "write a number with a unit, such as 500ms, 10s or 2m"
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		hint = "add a unit: " + text + "s or " + text + "ms"
	}
	return fmt.Sprintf("%q is no duration", text), hint
}

// textOf returns a scalar as it was written.
func textOf(n any) (string, bool) {
	switch x := n.(type) {
	case *ast.StringNode:
		return x.Value, true
	case *ast.LiteralNode:
		return x.Value.Value, true
	case *ast.IntegerNode:
		return x.Token.Value, true
	case *ast.FloatNode:
		return x.Token.Value, true
	case *ast.BoolNode:
		return x.Token.Value, true
	case *ast.InfinityNode:
		return x.Token.Value, true
	case *ast.NanNode:
		return x.Token.Value, true
	}
	return "", false
}

// describe names a node's kind for people.
func describe(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	}
	if t, ok := textOf(n); ok {
		return excerpt(t)
	}
	return "something else"
}

// excerpt quotes a text, and of a long one its beginning: a file of another kind is one scalar to a YAML parser.
func excerpt(t string) string {
	const most = 60
	if r := []rune(t); len(r) > most {
		return strconv.Quote(string(r[:most])) + "…"
	}
	return strconv.Quote(t)
}

// wanted names a type for people.
func wanted(t reflect.Type) string {
	if t == durationType {
		return "a duration"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int8, reflect.Int16, reflect.Int32:
		return fmt.Sprintf("a whole number up to %d", int64(1)<<(t.Bits()-1)-1)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<t.Bits()-1)
	case reflect.Uint, reflect.Uint64:
		return "a whole number from 0 up"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	switch t.String() {
	case "netip.Addr":
		return "an IP address"
	case "netip.Prefix":
		return "an IP prefix"
	case "netip.AddrPort":
		return "an address with a port"
	}
	return "one value"
}
