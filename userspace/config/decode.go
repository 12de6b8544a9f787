package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// place is where a key or an element stands in the file.
type place struct{ line, column int }

// decoder fills a struct from a file's tree. The library's own decoder stops at the first
// mistake; this one goes on, so that an operator corrects a file once. It also remembers
// where each key stands, for what Validate finds later.
type decoder struct {
	file     string
	places   map[string]place
	anchors  map[string]ast.Node
	problems Problems
	failed   map[string]bool                // keys whose values could not be decoded
	presets  map[reflect.Type]reflect.Value // what an entry of a map or list is before it is filled
	depth    int
	steps    int
}

// maxDepth bounds nesting; our deepest key is five levels down. An alias that contains itself
// ends here too.
const maxDepth = 32

// maxSteps bounds the work: aliases of aliases grow a small file without end.
const maxSteps = 1 << 20

// maxSize bounds the file: 4,096 VIPs at 200 bytes, and room.
const maxSize = 8 << 20

func newDecoder(file string) *decoder {
	return &decoder{file: file, places: map[string]place{}, failed: map[string]bool{}, anchors: map[string]ast.Node{}, presets: map[reflect.Type]reflect.Value{}}
}

// preset makes v what every new entry of its type starts from.
func preset[T any](d *decoder, v T) { d.presets[reflect.TypeFor[T]()] = reflect.ValueOf(v) }

// decode fills out, and collects problems.
func (d *decoder) decode(src []byte, out any) {
	defer func() { // the parser below is not ours; its panic must not take an edge down on reload
		if r := recover(); r != nil {
			d.report("", fmt.Sprintf("the YAML parser cannot read this file: %v", r), "")
		}
	}()
	if len(src) > maxSize {
		d.report("", fmt.Sprintf("is %d bytes long; at most %d are read", len(src), maxSize), "is this the right file?")
		return
	}
	file, err := parser.ParseBytes(src, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		d.syntax(err)
		return
	}
	bodies := 0
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if bodies++; bodies > 1 {
			d.at(doc.Body, "", "a second YAML document", "keep one document in the file")
			return
		}
		d.value(doc.Body, reflect.ValueOf(out).Elem(), "")
	}
}

func (d *decoder) syntax(err error) {
	p := Problem{File: d.file, Message: err.Error(), Hint: "not YAML"}
	var y yaml.Error
	if errors.As(err, &y) {
		p.Message = y.GetMessage()
		if t := y.GetToken(); t != nil && t.Position != nil {
			p.Line, p.Column = t.Position.Line, t.Position.Column
		}
	}
	d.problems = append(d.problems, p)
}

// at reports a problem at a node.
func (d *decoder) at(n ast.Node, key, message, hint string) {
	d.failed[key] = true
	p := position(n)
	d.problems = append(d.problems, Problem{File: d.file, Line: p.line, Column: p.column, Key: key, Message: message, Hint: hint})
}

func position(n ast.Node) place {
	if m, ok := n.(*ast.MappingValueNode); ok { // its own token is the colon
		n = m.Key
	}
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && m.Start != nil && m.Start.Value != "{" {
		n = m.Values[0].Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return place{t.Position.Line, t.Position.Column}
	}
	return place{}
}

// enter counts a step down; false means that the file nests or repeats itself without end. Each
// enter needs a leave.
func (d *decoder) enter(n ast.Node, key string) bool {
	d.depth++
	d.steps++
	switch {
	case d.steps > maxSteps:
		if d.steps == maxSteps+1 {
			d.at(n, key, "aliases make this file too large", "")
		}
		return false
	case d.depth > maxDepth:
		d.at(n, key, "nests too deeply", "")
		return false
	}
	return true
}

func (d *decoder) leave() { d.depth-- }

// value fills v from a node, whatever their kinds.
func (d *decoder) value(n ast.Node, v reflect.Value, key string) {
	defer d.leave()
	if !d.enter(n, key) {
		return
	}
	if _, ok := d.places[key]; !ok {
		d.places[key] = position(n)
	}
	n = d.resolve(n, key)
	if n == nil {
		return
	}
	if _, null := n.(*ast.NullNode); null {
		return // "key:" without a value: the default
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(d.fresh(v.Type().Elem()).Addr())
		}
		v = v.Elem()
	}
	if _, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.scalar(n, v, key)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, key)
	case reflect.Map:
		d.table(n, v, key)
	case reflect.Slice:
		d.list(n, v, key)
	default:
		d.scalar(n, v, key)
	}
}

// resolve follows anchors, aliases and tags; nil means that a problem was reported.
func (d *decoder) resolve(n ast.Node, key string) ast.Node {
	for range maxDepth {
		switch x := n.(type) {
		case *ast.AnchorNode:
			d.anchors[x.Name.String()] = x.Value
			n = x.Value
		case *ast.AliasNode:
			to, ok := d.anchors[x.Value.String()]
			if !ok {
				d.at(n, key, "alias *"+x.Value.String()+" names no anchor above it", "")
				return nil
			}
			n = to
		case *ast.TagNode:
			n = x.Value
		default:
			return n
		}
	}
	d.at(n, key, "alias leads to itself", "")
	return nil
}

// fresh returns an addressable new value of a type, holding its preset.
func (d *decoder) fresh(t reflect.Type) reflect.Value {
	v := reflect.New(t).Elem()
	if p, ok := d.presets[t]; ok {
		v.Set(p)
	}
	return v
}

// pairs returns a mapping's keys and values, with `<<` merged in below what is written out.
func (d *decoder) pairs(n ast.Node, key string) ([]*ast.MappingValueNode, bool) {
	defer d.leave()
	if !d.enter(n, key) {
		return nil, true
	}
	switch m := n.(type) {
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{m}, true
	case *ast.MappingNode:
		var out, merged []*ast.MappingValueNode
		for _, kv := range m.Values {
			if _, ok := kv.Key.(*ast.MergeKeyNode); !ok {
				out = append(out, kv)
				continue
			}
			from := d.resolve(kv.Value, key)
			if from == nil {
				continue
			}
			more, ok := d.pairs(from, key)
			if !ok {
				d.at(kv.Value, key, "<< wants an alias of a mapping", "")
			}
			merged = append(merged, more...)
		}
		for _, kv := range merged {
			if !hasKey(out, keyText(kv)) {
				out = append(out, kv)
			}
		}
		return out, true
	}
	return nil, false
}

func hasKey(kvs []*ast.MappingValueNode, name string) bool {
	for _, kv := range kvs {
		if keyText(kv) == name {
			return true
		}
	}
	return false
}

func keyText(kv *ast.MappingValueNode) string {
	if s, ok := kv.Key.(*ast.StringNode); ok {
		return s.Value
	}
	return kv.Key.GetToken().Value
}

// once reports keys that stand twice, and remembers where each stands.
func (d *decoder) once(kvs []*ast.MappingValueNode, key string) map[string]*ast.MappingValueNode {
	seen := map[string]*ast.MappingValueNode{}
	for _, kv := range kvs {
		name := keyText(kv)
		if first, ok := seen[name]; ok {
			d.at(kv.Key, join(key, name), fmt.Sprintf("stands twice; first in line %d", position(first.Key).line), "remove one")
			continue
		}
		seen[name] = kv
		d.places[join(key, name)] = position(kv.Key)
	}
	return seen
}

func (d *decoder) structure(n ast.Node, v reflect.Value, key string) {
	kvs, ok := d.pairs(n, key)
	if !ok {
		d.at(n, key, "want keys and values, have "+describe(n), "")
		return
	}
	fields := map[string]reflect.Value{}
	fieldsOf(v, fields)
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	seen := d.once(kvs, key)
	for _, kv := range kvs {
		name := keyText(kv)
		if seen[name] != kv {
			continue
		}
		if f, ok := fields[name]; ok {
			d.value(kv.Value, f, join(key, name))
		} else {
			d.at(kv.Key, join(key, name), "unknown key", nearest(name, names))
		}
	}
}

// fieldsOf maps the file's names to fields; embedded structs tagged inline are looked into.
func fieldsOf(v reflect.Value, out map[string]reflect.Value) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case strings.Contains(options, "inline"):
			fieldsOf(v.Field(i), out)
		case name == "-" || !f.IsExported():
		case name == "":
			out[strings.ToLower(f.Name)] = v.Field(i)
		default:
			out[name] = v.Field(i)
		}
	}
}

func (d *decoder) table(n ast.Node, v reflect.Value, key string) {
	kvs, ok := d.pairs(n, key)
	if !ok {
		d.at(n, key, "want names and values, have "+describe(n), "")
		return
	}
	out := reflect.MakeMapWithSize(v.Type(), len(kvs)) // the file's table replaces the default one
	seen := d.once(kvs, key)
	for _, kv := range kvs {
		name := keyText(kv)
		if seen[name] != kv {
			continue
		}
		k := reflect.New(v.Type().Key()).Elem()
		d.scalar(kv.Key, k, join(key, name))
		e := d.fresh(v.Type().Elem())
		d.value(kv.Value, e, join(key, name))
		out.SetMapIndex(k, e)
	}
	v.Set(out)
}

func (d *decoder) list(n ast.Node, v reflect.Value, key string) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		d.at(n, key, "want a list, have "+describe(n), "write [a, b], or a line each with - before it")
		return
	}
	out := reflect.MakeSlice(v.Type(), 0, len(s.Values))
	for i, item := range s.Values {
		e := d.fresh(v.Type().Elem())
		d.value(item, e, key+"["+strconv.Itoa(i)+"]")
		out = reflect.Append(out, e)
	}
	v.Set(out)
}

var durationType = reflect.TypeFor[time.Duration]()
