# SQL of visitors without end, in about the proportions of TPC-W's shopping mix; `done` after every ten visits.

function random(n) { return int(rand() * n) }

BEGIN {
  srand(seed)
  items = 10000; customers = 43200; orders = 38880
  print ".output /dev/null\nPRAGMA cache_size = -8000; PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;"
  for (visit = 1; ; visit++) {
    print ".output /dev/null"
    kind = rand()
    item = 1 + random(items); customer = 1 + random(customers)
    if (kind < 0.16) # home: promotions
      printf "SELECT first, last FROM customer WHERE id = %d; SELECT title, cost FROM item WHERE id IN (%d, %d, %d, %d, %d);\n", customer, 1 + random(items), 1 + random(items), 1 + random(items), 1 + random(items), 1 + random(items)
    else if (kind < 0.21) # new products
      printf "SELECT item.id, title, first, last FROM item JOIN author ON author.id = author WHERE subject = %d ORDER BY published DESC LIMIT 50;\n", random(24)
    else if (kind < 0.26) # best sellers of the last orders
      printf "SELECT item, sum(quantity) AS sold FROM line WHERE orders > (SELECT max(id) FROM orders) - 333 GROUP BY item ORDER BY sold DESC LIMIT 50;\n"
    else if (kind < 0.58) # product detail
      printf "SELECT * FROM item JOIN author ON author.id = author WHERE item.id = %d;\n", item
    else if (kind < 0.68) # search by title
      printf "SELECT id, title FROM item WHERE title >= '%c%c' ORDER BY title LIMIT 50;\n", 97 + random(26), 97 + random(26)
    else if (kind < 0.80) # search by author
      printf "SELECT item.id, title FROM author JOIN item ON author = author.id WHERE last >= '%c%c' ORDER BY last LIMIT 50;\n", 97 + random(26), 97 + random(26)
    else if (kind < 0.92) # cart
      printf "INSERT INTO cart VALUES (%d, %d, %d); SELECT title, cost, quantity FROM cart JOIN item ON item.id = item WHERE customer = %d;\n", customer, item, 1 + random(4), customer
    else if (kind < 0.95) # registration
      printf "UPDATE customer SET discount = %.2f, since = date('now') WHERE id = %d;\n", rand() / 2, customer
    else if (kind < 0.98) { # purchase
      printf "BEGIN; INSERT INTO orders VALUES (NULL, %d, date('now'), %.2f, 'pending', '%016d');", customer, rand() * 300, random(1000000000)
      printf " INSERT INTO line VALUES (NULL, last_insert_rowid(), %d, %d, 'visit %d of %d');", item, 1 + random(4), visit, seed
      printf " UPDATE item SET stock = CASE WHEN stock > 10 THEN stock - 1 ELSE stock + 21 END WHERE id = %d; DELETE FROM cart WHERE customer = %d; COMMIT;\n", item, customer
    } else # order display
      printf "SELECT * FROM orders JOIN line ON line.orders = orders.id JOIN item ON item.id = line.item WHERE orders.customer = %d;\n", customer
    if (visit % 10 == 0) print ".output stdout\n.print done"
  }
}
