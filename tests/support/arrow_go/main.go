// Print the id and the vector of each row of Parquet files as lines of JSON, read by arrow-go.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"log"
	"math"
	"os"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/float16"
	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/pqarrow"
)

type row struct {
	ID        string    `json:"id"`
	Embedding []float32 `json:"embedding"`
}

func main() {
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	encoder := json.NewEncoder(out)
	for _, path := range os.Args[1:] {
		if err := printRows(path, encoder); err != nil {
			log.Fatalf("%s: %v", path, err)
		}
	}
}

func printRows(path string, encoder *json.Encoder) error {
	parquet, err := file.OpenParquetFile(path, false)
	if err != nil {
		return err
	}
	defer parquet.Close()
	reader, err := pqarrow.NewFileReader(parquet, pqarrow.ArrowReadProperties{}, memory.DefaultAllocator)
	if err != nil {
		return err
	}
	table, err := reader.ReadTable(context.Background())
	if err != nil {
		return err
	}
	defer table.Release()
	records := array.NewTableReader(table, -1)
	defer records.Release()
	for records.Next() {
		record := records.RecordBatch()
		ids := record.Column(record.Schema().FieldIndices("id")[0]).(*array.String)
		vectors := record.Column(record.Schema().FieldIndices("embedding")[0]).(*array.FixedSizeList)
		for n := 0; n < ids.Len(); n++ {
			start, end := vectors.ValueOffsets(n)
			if err := encoder.Encode(row{ids.Value(n), numbers(vectors.ListValues(), start, end)}); err != nil {
				return err
			}
		}
	}
	return records.Err()
}

func numbers(values arrow.Array, start, end int64) []float32 {
	if halves, ok := values.(*array.Float16); ok {
		vector := make([]float32, 0, end-start)
		for _, half := range halves.Values()[start:end] {
			vector = append(vector, single(half))
		}
		return vector
	}
	return values.(*array.Float32).Float32Values()[start:end]
}

// single returns the number of a half. Its method Float32 returns 0 for the subnormal ones.
func single(half float16.Num) float32 {
	bits := half.Uint16()
	if bits>>10&0x1f != 0 {
		return half.Float32()
	}
	return float32(math.Copysign(math.Ldexp(float64(bits&0x3ff), -24), float64(1-2*int(bits>>15))))
}
