# SQL that fills the database of one book shop, all different for another `seed`. Tables, their proportions and the
# sizes of rows follow the TPC-W benchmark (10,000 items, 15 emulated browsers).

function random(n) { return int(rand() * n) }

function word(  i, text) {
  text = ""
  for (i = random(4) + 2; i > 0; i--) text = text substr("bcdfghjklmnprstvz", random(17) + 1, 1) substr("aeiou", random(5) + 1, 1)
  return text
}

# Out of a vocabulary of this shop, `n` characters or a little more.
function prose(n,  text) {
  text = words[random(4000)]
  while (length(text) < n) text = text " " words[random(4000)]
  return text
}

function day() { return sprintf("%04d-%02d-%02d", 1990 + random(30), 1 + random(12), 1 + random(28)) }

BEGIN {
  srand(seed)
  items = 10000; authors = 2500; customers = 43200; orders = 38880
  for (i = 0; i < 4000; i++) words[i] = word()
  print "PRAGMA page_size = 4096; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;"
  print "CREATE TABLE author (id INTEGER PRIMARY KEY, first TEXT, last TEXT, born TEXT, bio TEXT);"
  print "CREATE TABLE item (id INTEGER PRIMARY KEY, title TEXT, author INTEGER, published TEXT, publisher TEXT, subject INTEGER, about TEXT, cost REAL, stock INTEGER, isbn TEXT, related INTEGER);"
  print "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, first TEXT, last TEXT, street TEXT, city TEXT, phone TEXT, mail TEXT, since TEXT, discount REAL, notes TEXT);"
  print "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER, placed TEXT, total REAL, status TEXT, card TEXT);"
  print "CREATE TABLE line (id INTEGER PRIMARY KEY, orders INTEGER, item INTEGER, quantity INTEGER, comment TEXT);"
  print "CREATE TABLE cart (customer INTEGER, item INTEGER, quantity INTEGER);"
  for (i = 1; i <= authors; i++)
    printf "INSERT INTO author VALUES (%d,'%s','%s','%s','%s');\n", i, word(), word(), day(), prose(400)
  for (i = 1; i <= items; i++)
    printf "INSERT INTO item VALUES (%d,'%s',%d,'%s','%s',%d,'%s',%.2f,%d,'%013d',%d);\n", i, prose(30), 1 + random(authors), day(), prose(20), random(24), prose(400), 1 + rand() * 99, 10 + random(20), random(1000000000), 1 + random(items)
  for (i = 1; i <= customers; i++)
    printf "INSERT INTO customer VALUES (%d,'%s%d','%s','%s','%s','%s','%011d','%s@%s','%s',%.2f,'%s');\n", i, word(), i, word(), word(), prose(30), word(), random(1000000000), word(), word(), day(), rand() / 2, prose(300)
  for (i = 1; i <= orders; i++)
    printf "INSERT INTO orders VALUES (%d,%d,'%s',%.2f,'shipped','%s');\n", i, 1 + random(customers), day(), rand() * 300, prose(40)
  for (i = 1; i <= orders * 3; i++)
    printf "INSERT INTO line VALUES (%d,%d,%d,%d,'%s');\n", i, 1 + int((i - 1) / 3), 1 + random(items), 1 + random(5), prose(60)
  print "CREATE INDEX item_title ON item (title); CREATE INDEX item_author ON item (author); CREATE INDEX item_subject ON item (subject, published);"
  print "CREATE INDEX author_last ON author (last); CREATE UNIQUE INDEX customer_name ON customer (name);"
  print "CREATE INDEX orders_customer ON orders (customer); CREATE INDEX line_orders ON line (orders); CREATE INDEX line_item ON line (item);"
  print "CREATE INDEX cart_customer ON cart (customer);"
  print "COMMIT; ANALYZE;"
}
