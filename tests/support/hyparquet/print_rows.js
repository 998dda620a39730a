// Print the id and the vector of each row of Parquet files as lines of JSON, read by hyparquet.
import { asyncBufferFromFile, parquetReadObjects } from 'hyparquet'
import { compressors } from 'hyparquet-compressors'

for (const path of process.argv.slice(2)) {
  const file = await asyncBufferFromFile(path)
  const rows = await parquetReadObjects({ file, compressors, columns: ['id', 'embedding'] })
  for (const { id, embedding } of rows) {
    console.log(JSON.stringify({ id, embedding: Array.from(embedding) }))
  }
}
