from dinox.utils.suggest import closest, did_you_mean

NAMES = ["optimizer.lr", "model.num_classes", "model.num_queries", "train.lr_factor"]


def test_last_part_of_a_dotted_name_comes_first():
    assert closest("lr", NAMES) == ["optimizer.lr"]


def test_names_spelt_alike_are_found_whatever_their_case():
    assert closest("Model.Num_Clases", NAMES)[0] == "model.num_classes"


def test_nothing_near_gives_no_sentence():
    assert did_you_mean("SOLVER", NAMES) == ""


def test_sentence_lists_the_names():
    assert did_you_mean("model.num_clases", NAMES) == " Did you mean 'model.num_classes' or 'model.num_queries'?"
